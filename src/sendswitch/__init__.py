"""A programmable mail switch for Postfix. The parts are its subpackages; this module knows none of them."""
