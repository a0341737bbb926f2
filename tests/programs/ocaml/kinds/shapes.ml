(* Classes: an object that exists keeps its methods, a new one has the new ones. *)
class circle radius =
  object
    val mutable grown = 0

    method area = radius * radius * 3

    method grow n =
      grown <- grown + n;
      grown
  end

class labelled name radius =
  object
    inherit circle radius
    method label = name ^ " of 1"
  end
