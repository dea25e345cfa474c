"""The queue: due deliveries, the meaning of a verdict, and the outcome of each delivery. Knows the spool, the broker
and couriers by their contracts; knows no pipeline.
"""
