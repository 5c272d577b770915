"""Long runs and comparisons, one command each (CONTRIBUTING.md); no tier runs them unasked."""
