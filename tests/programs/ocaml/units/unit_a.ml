exception Limit of int

let name = Sys.opaque_identity "first"
let table : (string, int) Hashtbl.t = Hashtbl.create 8
let find = Hashtbl.find_opt table (* captured the table when the unit was initialised *)
let f n = if n > 100 then raise (Limit n) else n + 1

let seen word =
  let n = 1 + Option.value (find word) ~default:0 in
  Hashtbl.replace table word n;
  n
