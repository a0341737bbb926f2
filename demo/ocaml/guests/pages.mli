val home : Store.guest -> string
