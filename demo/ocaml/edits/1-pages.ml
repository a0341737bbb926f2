let shout = String.uppercase_ascii
let home guest = Printf.sprintf "WELCOME, %s: %s" (shout (Store.name guest)) (Store.summary guest)
