"""The object storage target: objects as files, their records, ids granted to the MDT."""
