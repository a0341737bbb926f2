let guarded n =
  match Counter.guarded n with
  | n -> string_of_int n
  | exception Counter.Limit n -> "limit " ^ string_of_int n

let answer words =
  match words with
  | [ "bump"; n ] -> string_of_int (Counter.bump (int_of_string n))
  | [ "alias"; n ] -> string_of_int (Keepers.alias (int_of_string n))
  | [ "table"; n ] ->
      string_of_int ((Hashtbl.find Keepers.in_table "bump") (int_of_string n))
  | [ "partial"; n ] -> string_of_int (Keepers.partial (int_of_string n))
  | [ "eta"; n ] -> string_of_int (Keepers.eta (int_of_string n))
  | [ "functor"; n ] -> string_of_int (Keepers.Of_counter.run (int_of_string n))
  | [ "include"; n ] -> string_of_int (Keepers.Wider.bump_more (int_of_string n))
  | [ "packed"; n ] -> string_of_int (Keepers.through_module (int_of_string n))
  | [ "seen"; word ] -> string_of_int (Counter.seen word)
  | [ "guarded"; n ] -> guarded (int_of_string n)
  | [ "hidden" ] -> string_of_int (Counter.hidden ())
  | [ "same" ] -> string_of_bool (Counter.same_table ())
  | [ "total" ] -> string_of_int !Counter.total
  | [ "name" ] -> Counter.name
  | [ "compact" ] ->
      Gc.compact ();
      "compacted"
  | _ -> "what?"

let () =
  print_endline "ready";
  try
    while true do
      print_endline (answer (String.split_on_char ' ' (read_line ())))
    done
  with End_of_file -> ()
