let shout = String.uppercase_ascii
let home guest = Printf.sprintf "WELCOME, %s: %s" (shout guest) (Store.summary guest)
