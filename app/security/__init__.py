"""Who may ask, how much, and what is written down of it: keys, limits, headers, the audit log."""
