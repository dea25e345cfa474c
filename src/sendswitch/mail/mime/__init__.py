"""The structure of a message as every reader might see it (RFC 2045 to 2049), in linear time and bounded memory."""
