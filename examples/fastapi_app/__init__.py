"""Models behind a FastAPI application, with a page to drop images on."""
