"""From the table to native code: language, generators, compiler, cache and loader."""
