def check_function(claim, question, derived, correct):
    raise NotImplementedError
