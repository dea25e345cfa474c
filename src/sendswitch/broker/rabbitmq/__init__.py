"""The broker between machines: RabbitMQ, over AMQP 0-9-1.

    default exchange ── tasks.pool ──▶ a worker of the site
                    └── tasks.ann@example.test ──▶ a worker of that user
    worker of the site ── exchange `verdicts`, key <node>.pool ──▶ a queue of the node
    worker of that user ── key <node>.own.ann@example.test ──▶ another queue of the node

A node believes a worker only about the tasks of its own queue. RabbitMQ lets a user's account publish with its own key
only, and proves the account by the property user-id of each message: accounts of users are their addresses, those of
the site have no @. Messages are `broker.frames`.

A task is lost with a queue or with RabbitMQ's memory; the spool has its mail, and the node offers it again. So nothing
depends on RabbitMQ's disk.
"""
