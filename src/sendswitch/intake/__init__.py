"""The intake of mail: from the end of data to the reply. Knows the spool, the queue, and couriers by their contract."""
