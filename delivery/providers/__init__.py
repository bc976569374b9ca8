"""Providers: bytes in, an Outcome out. None of them sees a model."""
