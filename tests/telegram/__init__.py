"""A stand-in for Telegram with a chat page, for tests and the demo; never installed."""
