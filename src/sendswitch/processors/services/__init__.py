"""Services that steps ask: connections, HTTP, addresses that may be asked, and messages as they are sent."""
