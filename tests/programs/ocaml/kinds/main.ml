(* One command for each kind of unit; `round` and `words` were made before any reload. *)
let round = new Shapes.labelled "round" 2
let words = List.fold_right Ordered.Words.add [ "pear"; "fig"; "apple" ] Ordered.Words.empty

module Best_word = Ordered.Best (Ordered.Word)

let answer line =
  match String.split_on_char ' ' line with
  | [ "old-object" ] -> Printf.sprintf "%s %d %d" round#label round#area (round#grow 1)
  | [ "new-object"; n ] ->
      let shape = new Shapes.labelled "new" (int_of_string n) in
      Printf.sprintf "%s %d" shape#label shape#area
  | [ "words" ] -> String.concat " " (Ordered.Words.elements words)
  | [ "best" ] -> string_of_int (Best_word.of_list [ "pear"; "fig" ])
  | [ "eval"; n ] ->
      let n = int_of_string n in
      string_of_int Expr.(eval (If (Bool (n > 0), Add (Int n, Int 1), Int 0)))
  | [ "plug"; name; n ] -> string_of_int (Plug.apply name (int_of_string n))
  | [ "lazy" ] -> string_of_int (Lazy.force Plug.sum)
  | [ "large"; n ] -> string_of_int (Large.lookup (int_of_string n))
  | [ "greet"; name ] -> Native.greet name
  | [ "both"; n ] -> string_of_int (Native.both (int_of_string n))
  | _ -> "what?"

let () =
  print_endline "ready";
  try
    while true do
      print_endline (answer (read_line ()))
    done
  with End_of_file -> ()
