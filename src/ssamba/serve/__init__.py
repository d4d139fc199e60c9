"""``ssamba serve``: the package's answers over HTTP, and a page to listen and look, for one machine or a few people."""
