"""Delivery: couriers to a next hop, composition of the message, retry times.

Knows SMTP and folders; knows neither the spool nor the queue.
"""
