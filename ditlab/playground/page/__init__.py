"""The web page: five tabs over the served models and the training runs."""

from ditlab.playground.page.mount import mount_page

__all__ = ["mount_page"]
