"""The queue of mail: which delivery is due, what its verdict means, and what became of it. Knows the spool, the broker
and couriers by their contracts; knows no pipeline."""
