"""Parts of HTML pages, and of the charts on them."""
