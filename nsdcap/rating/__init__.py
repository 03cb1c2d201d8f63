"""Human raters: the paper's two studies made, served to a browser on this machine, and scored."""
