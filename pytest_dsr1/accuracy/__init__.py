"""The model's accuracy, through lm-eval, behind one function."""
