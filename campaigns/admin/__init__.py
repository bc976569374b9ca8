"""The admin of lists, readers and campaigns. Each module registers its own pages."""

from campaigns.admin import campaigns, imports, lists, users

__all__ = ["campaigns", "imports", "lists", "users"]
