from millstream._http import message

KINDS = [each for each in vars(message).values() if isinstance(each, message.ProblemKind)]
