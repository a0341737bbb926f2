let home guest = Printf.sprintf "hello %s, %s" (Store.name guest) (Store.summary guest)
