"""The page: five tabs over the models that are served, and the runs under a folder."""

from ditlab.playground.page.mount import mount_page

__all__ = ["mount_page"]
