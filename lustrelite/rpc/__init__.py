"""Requests on their way: transport, the client's import, the server's export and service."""
