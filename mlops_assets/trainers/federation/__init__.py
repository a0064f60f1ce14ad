"""Federated averaging: what a node does where its rows are, and how the rounds go on without a node that is away."""
