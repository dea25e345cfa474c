"""The switch: takes mail in, has it decided, carries decisions out. Knows the spool, the broker and the couriers
by their contracts; knows no concrete adapter but the spool."""
