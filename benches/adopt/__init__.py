"""Published servers, unchanged, behind Millstream."""
