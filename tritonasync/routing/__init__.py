"""Which endpoint a call goes to, and what is done when it fails."""
