let number = 0
let name = "the name"
let large = List.init 100 (fun n -> (n, string_of_int n))
let f n = if n < 0 then raise Not_found else n + List.length large - 100 + number

let hold wait =
  let n = wait () in
  n + 1
