"""The broker between machines: RabbitMQ, over AMQP 0-9-1.

    default exchange ── tasks.pool ──▶ a worker of the site
                    └── tasks.ann@example.test ──▶ a worker of that user
    worker ── exchange `verdicts`, key <node>.<account> ──▶ the node's own queue

The account is `pool` for workers of the site, else the user's address. A node believes an account only about the tasks
of its own queue. Messages are `broker.frames`.

A task is lost with a queue or with RabbitMQ's memory; the spool has its mail, and the node offers it again. So nothing
depends on RabbitMQ's disk.
"""
