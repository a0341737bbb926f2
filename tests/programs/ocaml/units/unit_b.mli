val name : string
