"""The predictor: HTTP answers from the champion, swapped while it runs."""
