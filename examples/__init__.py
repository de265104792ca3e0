"""Programs to read and run from a clone of the repository; none of it is in the package."""
