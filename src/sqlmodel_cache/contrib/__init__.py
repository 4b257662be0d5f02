"""What fits the library into frameworks. Each module needs its own extra, and nothing else imports it."""
