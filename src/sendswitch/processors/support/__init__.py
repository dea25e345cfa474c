"""The parts that several processors share: connections, lists, readers of content, addresses that may be asked."""
