"""The yard that all tests here share."""

from tests.integration.client.clients import up

__all__ = ["up"]
