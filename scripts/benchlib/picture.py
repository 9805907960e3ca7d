def draw(data):
    return ""
