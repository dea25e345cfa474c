"""The processes and threads that run user code, and how they are started, watched and ended."""
