"""Durable state: records in a database, watched by whoever needs to know of changes."""

from serai.store.collection import Change, Collection, Record
from serai.store.database import Database
from serai.store.messages import Stored

__all__ = ["Change", "Collection", "Database", "Record", "Stored"]
