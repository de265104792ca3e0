"""Between handles and the server: how rows become requests."""
