"""What upstreams list and what callers see: catalogs, pins, offers, sets, search, and tools that read resources.

Names that other folders may import, besides the public ones of `millstream.gateway`:

- `catalog`: AcceptedFile, Catalog, Description, MAX_ITEM_BYTES, METHODS, Pins,
  QuarantinedItem, StoredCatalog, digest_of, fetch, read_page
- `changes`: ChangeLog, describe_changes
- `offer`: Conflict, Mount, Offer, OfferedItem, find_claimant, make_offer, mount
- `resource_tools`: ResourceToolsPart, make_companion
- `search`: CALL, CALL_DESCRIPTION, SEARCH, SEARCH_DESCRIPTION, SearchPart
- `sets`: SetsPart, find_addresses, reveals
"""
