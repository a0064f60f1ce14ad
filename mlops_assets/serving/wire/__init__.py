"""Requests and answers as they cross the wire, and the proof that a request is what its model asks for."""
