"""Methods that spend computation at inference."""
