"""The admin of lists, readers and campaigns. Each module registers its own pages."""

from campaigns.admin import campaigns, column_heads, imports, lists, users

__all__ = ["campaigns", "column_heads", "imports", "lists", "users"]
