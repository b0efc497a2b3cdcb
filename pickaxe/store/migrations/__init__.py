"""Forward-only migrations. A version is never edited once released."""
